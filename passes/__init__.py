"""Graph passes: from the adaptive graph to the integer dialect, and from there to targets."""
