"""SLURM: a run or a sweep as jobs that save, requeue and go on by themselves."""
