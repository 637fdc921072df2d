"""Benchmarks against the tools that people would use instead: fio, Python threads, ``dd | tee``.

Every figure that is compared comes out of one interleaved run (A B C A B C …) on the same targets, because absolute speed drifts on
shared machines. Reported are ratios, as median and spread over the rounds. The method is in ``benchmarks/README.md``.

``work``        what every contender has to do: the client's bytes and the targets
``measure``     one sample: wall clock, CPU of this process, of its children, of the machine
``contenders``  fanout itself and its peers, one class each, with one `run`
``peers``       the peers that need more: the C driver, btrfs, rclone
``rounds``      who runs when, ratios within a round, warm-up with proof
``machine``     what the figures were made on
``quick``       ``fanout bench quick``: everybody at one point

``plan``        what a scenario says, as values, and the names of its figures
``scenario``    reads it from a file
``places``      targets that are set up and taken down
``throttle``    makes one device slow
``measures/``   what can be measured, a module for each kind
``run``         ``fanout bench run``: a scenario from end to end, its result as plain values
``figures``     one number with its rounds
``results``     kept, read again, compared
``report/``     the page that shows a result
"""
