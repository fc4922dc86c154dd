"""A race over the settings of a sweep: rounds of pictures, settings that leave, and the one to ship."""
