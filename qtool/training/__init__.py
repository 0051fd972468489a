"""How every method trains: phases, steps, checkpoints, evaluation, several processes."""
