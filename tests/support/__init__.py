"""What several tests share: small models, small trees, services in one process."""
