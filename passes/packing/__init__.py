"""Sub-byte integers: how they are stored, and how files unpack them."""
