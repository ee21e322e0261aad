"""What a study asks of who takes part: of a source, of clusters of sites. What each of them does is in other rooms."""
