"""What a comparison runs: cells, folds of patients, the models that arms end with and their answers.
What is asked, and what is concluded, are one room up.
"""
