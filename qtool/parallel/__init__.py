"""Processes of one training job."""
