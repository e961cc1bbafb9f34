"""Small models of the real classes with random weights, saved in the real layout: their pipelines
load the folders."""
