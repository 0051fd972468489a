"""CoQuant and the other methods of joint training."""
