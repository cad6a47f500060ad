"""Training over several devices: the one folder that says `tf.distribute`."""
