"""The messaging service: five roles, the HTTP service and the load generator; uses the public names of the engine."""
