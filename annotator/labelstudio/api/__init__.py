"""Label Studio's HTTP interface. Nothing else in the project talks to it."""
