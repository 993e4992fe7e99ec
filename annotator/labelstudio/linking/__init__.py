"""The link between a workspace and a project: how it begins, changes and ends."""
