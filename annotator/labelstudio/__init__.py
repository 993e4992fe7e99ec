"""Two-way exchange with a Label Studio project: tasks and predictions go out, people's answers come back.

    credentials  where the API key comes from; keeps it out of messages
    connection   one HTTP client with the SDK's authentication; errors as ours
    filters      conditions on tasks
    server       every request that the project makes to Label Studio
    link         making, adopting and leaving a project

The SDK takes over a second and 150 MB to import, so it is imported where a connection is opened, never at the top.
"""
