"""Studies over tasks, on Optuna: trials that fit the memory there is, stop early and can be trusted.

Being built; no command and no public name leads here yet. There is: the config of a study and its space, families of studies,
folds, the pruner, calibrations by shape, a trial in its child, a worker at a journal or a database. There is not: `batchcal hpo`
(run, status, best), several workers from one command, the live table and the report, the example configs, the benchmarks.
"""
