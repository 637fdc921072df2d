"""The store under real faults: killed at every step, without power, on devices that fail, and judged by an independent oracle.

| module | what it is |
| --- | --- |
| `journal` | what was sent and what was acknowledged, kept outside of the store by whoever survives |
| `media` | catalog, configuration and volumes as they lie there, read without a line of fanout |
| `oracle` | what must be true of a store after anything at all, asked by a fresh process |
"""
