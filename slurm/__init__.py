"""Run the commands of this project as jobs of a SLURM cluster."""
