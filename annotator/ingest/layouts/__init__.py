"""The layouts that data sets come in: each turns a source into a stream of samples."""
