"""Hyperparameter studies of tasks, on Optuna: trials fit the available memory, stop early and can be trusted.

`batchcal hpo run` starts a `WorkerPool` (`workers`). Each worker takes trials from the study (`study`, `storage`), plans them
from the calibration of their shape (`shapes`), and runs each in a fenced child (`trials`). `study_status` is the view of a study
for display. The task contains nothing of a study, and no child accesses the storage.
"""
