"""Readers of public benchmarks in their published layouts; `docs/public-data.md` lists sources and splits."""
