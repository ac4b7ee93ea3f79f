"""CatalogEntry models by name: the catalog, the caches, the download."""
