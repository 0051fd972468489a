"""What everything shares: grids and selections, arithmetic, the dialect, files, errors."""
