"""Studies over tasks, on Optuna: trials that fit the memory there is, stop early and can be trusted.

`batchcal hpo run` starts a `Crew` of workers (`member`, `worker`), each of which takes trials from the study (`study`,
`storage`), plans them by the calibration of their shape (`shapes`), and runs each in a fenced child (`trial`, `inside`). What is
looked at is in `seen`. Nothing of a study is in the task, and no child touches the storage.
"""
