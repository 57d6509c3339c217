"""The samplers and their models: TPE, Gaussian process, random search and a grid."""
