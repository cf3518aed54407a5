"""Every number about compressed models that is published, as scripts."""
