"""Where photos come from: one reader a data set, from the configuration to a catalog."""
