"""Research components: published ones and one of ours that lose in the tables of docs/verify.md."""
