"""Published models by name: the catalog, the caches and the download."""
