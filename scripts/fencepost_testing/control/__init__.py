"""A local cluster by HTTP and JSON, for tests in other languages: `fencepost serve-tests`.

- `access`: who may ask: a token, this machine's own addresses, and no page of another site
- `api`: what can be asked for; `openapi`: its description, and a page of it
- `server`: the cluster and the server of one command
"""
