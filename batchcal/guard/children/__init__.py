"""Code inside a child process: the zygote, the job, reports of errors."""
