"""Results for pipelines: what fails a build, what is suppressed, SARIF and JUnit XML."""
