"""The scenario on real files and real targets: what happens when a pool fails, and what mends it.

``inputs``    real files of this machine, chosen the same way every time, and their digests by other hands
``devices``   loop and zram devices, file size limits: where real errors come from, and how they go
``site``      five pools on files or devices, with the configuration file that describes them
``signals``   what Ctrl-C may interrupt, and what not
``scenario``  the phases: healthy, COPYPOOL1 fails, ACTIVEDATAPOOL fails, repair, proof

Nothing in here prints: `scenario.run` tells a `Narrator` what happens, and returns a `Report`.
"""
