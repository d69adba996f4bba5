"""The jobs: one verb a module, each with `main(argv) -> int`."""
