"""Any module -> a torch.fx graph of modules and known functions."""
