"""The web server: FastAPI routes for the hot path, Gradio for the page around it."""

import os

# Read by Gradio when it is first imported, wherever in this package that happens.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
