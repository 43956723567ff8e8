"""Two methods, a stream and a data set for clprompt."""
