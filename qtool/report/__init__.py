"""What people look at: tables, bars and pictures of a report."""
