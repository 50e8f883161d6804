"""Archives on Ray Serve, the host for many machines (docs/ray.md). Needs the extra `ray`.

    options   what a deployment file says of the models, checked
    archives  where an archive lies: a path or a URL -> a file on this machine, and what it says of itself
    replica   one model in a process of its own, with its share of a GPU
    multiplex many models in few replicas: shelf loads, lends and drops them, sharing has what they agree on, unloaded
              and whereabouts answer without them, heap gives their memory back
    front     HTTP requests -> the model that the path names
    gathering several requests -> one call to a replica
    gone      the errors of a replica
    app       all of them as one application: what `serve deploy` builds
    checks    what is refused before Ray starts, and next_steps: what is printed when the models are ready
    grpc_service  TorchServe's gRPC; grpc_codes has its statuses, grpc_address lets Ray listen where it shall
    local     a Ray of one machine, for scripts/serve-ray and the tests
    tunables  Ray Serve's settings for many requests per CPU second, and HAProxy's addresses; haproxy is its program
    node      the same for a machine of a cluster, which scripts/commands/ray_node.py starts
    failures  why Ray or a model did not start, in one line
    crashes   how a replica's process died, by its log

This lies beside the commands, and not in handlers/: what lies there is copied into each archive, and an archive needs
no Ray.
"""
