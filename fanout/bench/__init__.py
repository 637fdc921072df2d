"""Benchmarks against the tools that people would use instead: fio, Python threads, ``dd | tee``.

Every figure that is compared comes out of one interleaved run (A B C A B C …) on the same targets, because absolute speed drifts on
shared machines. Reported are ratios, as median and spread over the rounds. The method is in ``benchmarks/README.md``.

``work``        what every contender has to do: the client's bytes and the targets
``measure``     one sample: wall clock, CPU of this process, of its children, of the machine
``contenders``  fanout itself and its peers, one class each, with one `run`
``compare``     rounds, ratios, and the report
``machine``     what the figures were made on
"""
