#!/usr/bin/env bash
# Makes what cluster/gcp.yaml needs: a network that the internet cannot reach, a registry, a bucket and two service
# accounts. A second run makes only what is missing.
#   cluster/gcp-setup.sh PROJECT REGION BUCKET       as in: cluster/gcp-setup.sh my-project us-central1 my-bucket
set -euo pipefail

if [ $# -ne 3 ]; then
  echo "usage: $0 PROJECT REGION BUCKET" >&2
  exit 2
fi
project=$1 region=$2 bucket=$3
network=raysid subnet_range=10.80.0.0/20
proxy_range=35.235.240.0/20  # of Google's identity-aware proxy, which admits users by your project's roles

# make DESCRIBE... -- CREATE...: runs the second command unless the first succeeds.
make() {
  local describe=()
  while [ "$1" != -- ]; do
    describe+=("$1")
    shift
  done
  shift
  "${describe[@]}" --project="$project" >/dev/null 2>&1 || "$@" --project="$project"
}

gcloud services enable compute.googleapis.com iap.googleapis.com iam.googleapis.com storage.googleapis.com \
  artifactregistry.googleapis.com cloudresourcemanager.googleapis.com --project="$project"

# A network without external addresses. Private Google access reaches buckets and the registry; the NAT allows
# outgoing connections to the internet and no incoming ones.
make gcloud compute networks describe "$network" -- \
  gcloud compute networks create "$network" --subnet-mode=custom
make gcloud compute networks subnets describe "$network" --region="$region" -- \
  gcloud compute networks subnets create "$network" --network="$network" --region="$region" \
  --range="$subnet_range" --enable-private-ip-google-access
make gcloud compute routers describe "$network" --region="$region" -- \
  gcloud compute routers create "$network" --network="$network" --region="$region"
make gcloud compute routers nats describe "$network" --router="$network" --region="$region" -- \
  gcloud compute routers nats create "$network" --router="$network" --region="$region" \
  --auto-allocate-nat-external-ips --nat-all-subnet-ip-ranges

# A custom network admits nothing but these two rules: traffic between the cluster's machines, and SSH from the proxy.
make gcloud compute firewall-rules describe raysid-internal -- \
  gcloud compute firewall-rules create raysid-internal --network="$network" --direction=INGRESS \
  --allow=tcp,udp,icmp --source-tags=raysid --target-tags=raysid
make gcloud compute firewall-rules describe raysid-ssh -- \
  gcloud compute firewall-rules create raysid-ssh --network="$network" --direction=INGRESS \
  --allow=tcp:22 --source-ranges="$proxy_range" --target-tags=raysid

make gcloud artifacts repositories describe raysid --location="$region" -- \
  gcloud artifacts repositories create raysid --location="$region" --repository-format=docker
make gcloud storage buckets describe "gs://$bucket" -- \
  gcloud storage buckets create "gs://$bucket" --location="$region" --uniform-bucket-level-access \
  --public-access-prevention

# Ray looks for the head's account by this name and adds the roles that start machines. The workers' account can read
# images and use the bucket, and nothing else.
for account in ray-autoscaler-sa-v1 raysid-worker; do
  email="$account@$project.iam.gserviceaccount.com"
  make gcloud iam service-accounts describe "$email" -- gcloud iam service-accounts create "$account"
  gcloud artifacts repositories add-iam-policy-binding raysid --location="$region" --project="$project" \
    --member="serviceAccount:$email" --role=roles/artifactregistry.reader >/dev/null
  for role in roles/storage.objectUser roles/storage.legacyBucketReader; do
    gcloud storage buckets add-iam-policy-binding "gs://$bucket" --project="$project" \
      --member="serviceAccount:$email" --role="$role" >/dev/null
  done
done

echo "Done. Put $project, $region and a zone of it at the top of cluster/gcp.yaml."
