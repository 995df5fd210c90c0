"""Report results to pipelines: which fail a build, which are suppressed, as SARIF and as JUnit XML."""
