"""Two-way exchange with a Label Studio project: tasks and predictions go out, people's answers go both ways.

    api       every request to a Label Studio server; where its key comes from
    config    labeling configurations, made and read; what a result says as an answer of ours, and back
    linking   making, adopting and leaving a project; who and what of it is who and what here
    tasks     the top of the queue goes out, predictions stay of one version, decided tasks come back
    answers   what was said there comes in, what was said here goes out, exactly once
    files     Label Studio's JSON, without a server
    watch     both sides kept equal until stopped; `wake` shortens its waits, `report` and `status` tell of it
    backend   predictions for a server that asks for them

The SDK takes over a second and 150 MB to import, so it is imported where a connection is opened, never at the top.
"""
