"""What diffopt must know of a pipeline that has no family file, found from the pipeline itself."""
