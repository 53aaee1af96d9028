"""The daemon beside the in-water sensor: records it, publishes it, serves its files and its clock."""
