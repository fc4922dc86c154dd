"""What this machine has, and how a process behaves on it: probes, memory, its share of cores and GPUs, its output."""
