"""Official metrics of X2-VLM's tasks, as pure functions of arrays and strings."""
