"""The service: deployments, drop folder, webhook receiver, local servers."""
