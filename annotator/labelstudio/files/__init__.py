"""Label Studio's JSON, read and written without a server."""
