"""Work of the verbs: each module prepares, runs or shows one kind of work that several verbs share."""
