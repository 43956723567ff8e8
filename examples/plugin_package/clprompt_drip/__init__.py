"""Two methods, a stream, a data set and a plug-in for clprompt."""
