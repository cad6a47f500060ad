"""Training over several devices, and devices for several processes: the one folder that says `tf.distribute`."""
