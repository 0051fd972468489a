"""Emitters: integer dialect -> a deployable artifact."""
